const char *version(void) { return "version: " VERSION; }
