/* Named steps at which a test lets the process die (tests/crash/run --steps). In the usual build they
 * are nothing. Built with -DFAULTS=ON (preset `faults`), BATCHFETCH_FAULT=NAME:N in the environment
 * kills the process by SIGKILL at the N-th passage of the step NAME. */
#ifndef STORAGE_FAULT_H
#define STORAGE_FAULT_H

#ifdef BATCHFETCH_FAULTS
#include <stdio.h>

void fault_point(const char *name);
/* Prints the names of all steps in the program, a line each. */
void fault_list(FILE *f);
/* The names stand in a section of their own, so that the list is complete by construction. */
#define FAULT_POINT(text)                                                                     \
    do {                                                                                      \
        static const char fault_name[] __attribute__((section("fault_points"), used)) = text; \
        fault_point(fault_name);                                                              \
    } while (0)
#else
#define FAULT_POINT(text) ((void)0)
#endif

#endif
