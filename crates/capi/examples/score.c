// Scores a conversation, then two responses to a prompt, with the model in a folder:
//
//     make capi
//     cc -std=c11 -o score crates/capi/examples/score.c $(pkg-config --cflags --libs target/capi/lib/pkgconfig/kudos.pc)
//     LD_LIBRARY_PATH=target/capi/lib ./score demo/model

#include <kudos.h>
#include <stdio.h>
#include <stdlib.h>
#include <threads.h>
#include <time.h>

static const char *const OPTIONS = "{\"device\": \"cpu\"}";
static const char *const CONVERSATION =
    "{\"id\": 1, \"messages\": [{\"role\": \"user\", \"content\": \"What is 1+1?\"},"
    " {\"role\": \"assistant\", \"content\": \"1+1=2\"}]}";
static const char *const RESPONSES =
    "{\"id\": 2, \"prompt\": \"What is 1+1?\", \"responses\": [\"1+1=2\", \"1+1=3\"]}";

static void print_error(FILE *file) {
    fprintf(file, "error: %s\n", kudos_error_message());
    if (kudos_error_place()) fprintf(file, "  at %s\n", kudos_error_place());
    if (kudos_error_hint()) fprintf(file, "\nhint: %s\n", kudos_error_hint());
}

static void check(KudosStatus status) {
    if (status == KUDOS_STATUS_OK) return;
    print_error(stderr);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: score MODEL_FOLDER\n");
        return 2;
    }
    KudosEngine engine;
    check(kudos_open(argv[1], OPTIONS, &engine));

    // One conversation: a line of JSON, as from the command.
    char *text;
    check(kudos_score(engine, CONVERSATION, &text));
    printf("%s\n", text);
    kudos_free(text);

    // Two responses: plain floats.
    float rewards[2];
    size_t count;
    check(kudos_rewards(engine, RESPONSES, rewards, 2, &count));
    for (size_t i = 0; i < count; i++) printf("%.9g\n", rewards[i]);

    // The same without waiting: other work may be done between two polls.
    KudosResult result;
    check(kudos_submit(engine, RESPONSES, &result));
    KudosStatus status;
    while ((status = kudos_poll(result, &text)) == KUDOS_STATUS_NOT_READY) {
        thrd_sleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    check(status);
    printf("%s\n", text);
    kudos_free(text);

    // A request that cannot be scored.
    if (kudos_score(engine, "{\"prompt\": \"What is 1+1?\"}", &text) != KUDOS_STATUS_OK) {
        print_error(stdout);
    }

    check(kudos_close(engine));
    return 0;
}
