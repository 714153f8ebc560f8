#include <stdio.h>
const char *version(void);
int main(void) { return puts(version()) < 0; }
