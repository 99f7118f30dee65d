// See ../context.h.
