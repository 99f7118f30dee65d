// See context.h.
