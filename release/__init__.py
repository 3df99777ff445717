"""What is done before a release: build, install, run, audit. No part of what is installed."""
