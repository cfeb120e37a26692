// Eight threads over one engine: every result is that of one thread alone, every thread has its own
// last error, and an engine that closes leaves no call without an outcome.

#include "require.h"

#include <kudos.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, REQUESTS = 6, ROUNDS = 3 };

static const char *const MODEL_OPTIONS = "{\"device\": \"cpu\", \"threads\": 2}";
static KudosEngine engine;
static char requests[REQUESTS][160];
static char *expected[REQUESTS];

static void *score(void *argument) {
    size_t thread = (size_t)argument;
    for (size_t round = 0; round < ROUNDS; round++) {
        KudosResult results[REQUESTS];
        for (size_t i = 0; i < REQUESTS; i++) {
            REQUIRE(kudos_submit(engine, requests[i], &results[i]) == KUDOS_STATUS_OK);
        }
        char *text;
        size_t one = (thread + round) % REQUESTS;
        REQUIRE(kudos_score(engine, requests[one], &text) == KUDOS_STATUS_OK);
        REQUIRE(strcmp(text, expected[one]) == 0);
        kudos_free(text);

        // An error of this thread alone.
        char options[64], key[16];
        snprintf(key, sizeof key, "`option%zu`", thread);
        snprintf(options, sizeof options, "{\"option%zu\": %zu}", thread, round);
        KudosEngine none;
        REQUIRE(kudos_open("no/such/folder", options, &none) == KUDOS_STATUS_OPTIONS && none == 0);
        for (size_t i = 0; i < REQUESTS; i++) {
            if (i % 3 == 2) {
                REQUIRE(kudos_cancel(results[i]) == KUDOS_STATUS_OK);
                continue;
            }
            REQUIRE(kudos_wait(results[i], &text) == KUDOS_STATUS_OK);
            REQUIRE(strcmp(text, expected[i]) == 0);
            kudos_free(text);
        }
        REQUIRE(strstr(kudos_error_message(), key) != NULL);
    }
    return NULL;
}

// Scores until the engine is closed by another thread.
static void *score_until_closed(void *argument) {
    size_t *scored = argument;
    for (;;) {
        char *text;
        size_t i = *scored % REQUESTS;
        KudosStatus status = kudos_score(engine, requests[i], &text);
        if (status != KUDOS_STATUS_OK) {
            REQUIRE(text == NULL);
            // Submitted while the engine closed, or with a handle that was closed before.
            REQUIRE(status == KUDOS_STATUS_STOPPED || status == KUDOS_STATUS_ARGUMENT);
            return NULL;
        }
        REQUIRE(strcmp(text, expected[i]) == 0);
        kudos_free(text);
        ++*scored;
    }
}

int main(int argc, char **argv) {
    REQUIRE(argc == 2);
    REQUIRE(kudos_open(argv[1], MODEL_OPTIONS, &engine) == KUDOS_STATUS_OK);
    for (size_t i = 0; i < REQUESTS; i++) {
        snprintf(requests[i], sizeof requests[i],
                 "{\"id\": %zu, \"prompt\": \"What is %zu+1?\", \"responses\": [\"%zu+1=%zu\", \"%zu\"]}", i, i, i,
                 i + 1, i);
        REQUIRE(kudos_score(engine, requests[i], &expected[i]) == KUDOS_STATUS_OK);
    }
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, score, (void *)i);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    REQUIRE(kudos_error_message() == NULL);

    size_t scored[THREADS] = {0};
    KudosResult last;
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, score_until_closed, &scored[i]);
    REQUIRE(kudos_submit(engine, requests[0], &last) == KUDOS_STATUS_OK);
    REQUIRE(kudos_close(engine) == KUDOS_STATUS_OK);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);

    // What was submitted before is scored, and outlives the engine.
    char *text;
    REQUIRE(kudos_poll(last, &text) == KUDOS_STATUS_OK);
    REQUIRE(strcmp(text, expected[0]) == 0);
    kudos_free(text);
    for (size_t i = 0; i < REQUESTS; i++) kudos_free(expected[i]);
    puts("every result is right");
    return 0;
}
