// REQUIRE: ends the program, with the line and this thread's last error, unless a condition holds.

#pragma once

#include <kudos.h>
#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition)                                                              \
    do {                                                                                \
        if (!(condition)) {                                                             \
            const char *message = kudos_error_message();                                \
            fprintf(stderr, "%d: %s (%s)\n", __LINE__, #condition, message ? message : "-"); \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)
