"""Imported last where processes are forked from: what is there by then, none of them has to look through."""

import gc

gc.freeze()
