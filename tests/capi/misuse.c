// Wrong arguments: each is an error that names it, and leaves its outputs empty.

#include "require.h"

#include <kudos.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Requires a status and a part of the message.
#define FAILS(call, status, part)                            \
    do {                                                     \
        REQUIRE((call) == (status));                         \
        REQUIRE(strstr(kudos_error_message(), part) != NULL); \
    } while (0)

static const char *const REQUEST = "{\"prompt\": \"What is 1+1?\", \"response\": \"1+1=2\"}";
static char marker;

int main(int argc, char **argv) {
    REQUIRE(argc == 2);
    const KudosStatus ARGUMENT = KUDOS_STATUS_ARGUMENT;
    const char *model = argv[1];
    KudosEngine engine = 99;
    char *text = &marker;

    REQUIRE(strcmp(kudos_version(), VERSION) == 0);
    REQUIRE(kudos_error_kind() == NULL && kudos_error_message() == NULL);
    REQUIRE(kudos_error_place() == NULL && kudos_error_hint() == NULL);

    // Opening.
    FAILS(kudos_open(NULL, NULL, &engine), ARGUMENT, "`model` is NULL");
    REQUIRE(engine == 0);
    FAILS(kudos_open(model, NULL, NULL), ARGUMENT, "`engine` is NULL");
    FAILS(kudos_open("a\xff", NULL, &engine), ARGUMENT, "`model` is not UTF-8 at byte 2");
    FAILS(kudos_open(model, "{\"device\": \"\xff\"}", &engine), ARGUMENT, "`options` is not UTF-8 at byte 13");
    REQUIRE(strcmp(kudos_error_kind(), "argument") == 0);
    FAILS(kudos_open("no/such/folder", NULL, &engine), KUDOS_STATUS_IO, "");
    REQUIRE(strcmp(kudos_error_kind(), "io") == 0);
    FAILS(kudos_open(model, "{", &engine), KUDOS_STATUS_OPTIONS, "cannot be read");
    FAILS(kudos_open(model, "[1]", &engine), KUDOS_STATUS_OPTIONS, "");
    FAILS(kudos_open(model, "{\"thread\": 1}", &engine), KUDOS_STATUS_OPTIONS, "unknown field `thread`");
    REQUIRE(strstr(kudos_error_message(), "`threads`") != NULL);
    REQUIRE(strstr(kudos_error_hint(), "kudos score") != NULL);
    FAILS(kudos_open(model, "{\"threads\": -1}", &engine), KUDOS_STATUS_OPTIONS, "-1");
    FAILS(kudos_open(model, "{\"threads\": 1, \"threads\": 2}", &engine), KUDOS_STATUS_OPTIONS, "duplicate");
    FAILS(kudos_open(model, "{\"device\": \"tpu\"}", &engine), KUDOS_STATUS_OPTIONS, "unknown variant `tpu`");
    FAILS(kudos_open(model, "{\"device\": \"cpu\", \"overlap\": \"auto\"}", &engine), KUDOS_STATUS_OPTIONS,
          "`overlap` is an option of GPUs, and `device` is \"cpu\"");
    FAILS(kudos_open(model, "{\"peer_timeout\": 0}", &engine), KUDOS_STATUS_OPTIONS, "`peer_timeout` is 0");
    FAILS(kudos_open(model, "{\"gpu_reserve_gib\": -1}", &engine), KUDOS_STATUS_OPTIONS, "`gpu_reserve_gib` is -1");
    FAILS(kudos_open(model, "{\"device\": \"cpu\", \"ranks\": 1000}", &engine), KUDOS_STATUS_OPTIONS, "1000");
    FAILS(kudos_open(model, "{\"device\": \"cpu\", \"threads\": 0}", &engine), KUDOS_STATUS_OPTIONS, "at least one thread");
    REQUIRE(engine == 0);

    // Handles that were never given out.
    KudosResult result = 99;
    float reward = 9;
    size_t count = 9;
    uint32_t ids[2] = {1008, 1014};
    FAILS(kudos_score(0, REQUEST, &text), ARGUMENT, "there is no handle 0, expected an engine");
    REQUIRE(text == NULL);
    FAILS(kudos_score(UINT64_MAX, REQUEST, &text), ARGUMENT, "there is no handle 18446744073709551615");
    FAILS(kudos_rewards(7, REQUEST, &reward, 1, &count), ARGUMENT, "there is no handle 7");
    REQUIRE(count == 0);
    FAILS(kudos_score_ids(7, ids, 2, &reward), ARGUMENT, "there is no handle 7");
    FAILS(kudos_submit(7, REQUEST, &result), ARGUMENT, "there is no handle 7");
    REQUIRE(result == 0);
    FAILS(kudos_render(7, REQUEST, &text), ARGUMENT, "there is no handle 7");
    FAILS(kudos_info(7, &text), ARGUMENT, "there is no handle 7");
    FAILS(kudos_close(7), ARGUMENT, "there is no handle 7, expected an engine");
    FAILS(kudos_abort(7), ARGUMENT, "there is no handle 7, expected an engine");
    FAILS(kudos_poll(7, &text), ARGUMENT, "there is no handle 7, expected a result");
    FAILS(kudos_wait(7, &text), ARGUMENT, "there is no handle 7, expected a result");
    FAILS(kudos_cancel(7), ARGUMENT, "there is no handle 7, expected a result");
    kudos_free(NULL);

    // Wrong requests and outputs.
    REQUIRE(kudos_open(model, "{\"device\": \"cpu\", \"threads\": null}", &engine) == KUDOS_STATUS_OK);
    text = &marker;
    FAILS(kudos_score(engine, NULL, &text), ARGUMENT, "`request` is NULL");
    REQUIRE(text == NULL);
    FAILS(kudos_score(engine, REQUEST, NULL), ARGUMENT, "`result` is NULL");
    FAILS(kudos_score(engine, "{\"prompt\": \"\xff\"}", &text), KUDOS_STATUS_INVALID_INPUT, "not UTF-8 at byte 13");
    FAILS(kudos_score(engine, "", &text), KUDOS_STATUS_INVALID_INPUT, "not JSON");
    FAILS(kudos_score(engine, "{\"prompt\": 1", &text), KUDOS_STATUS_INVALID_INPUT, "not JSON");
    FAILS(kudos_score(engine, "[]", &text), KUDOS_STATUS_INVALID_INPUT, "an empty list");
    FAILS(kudos_score(engine, "{\"prompt\": \"q\"}", &text), KUDOS_STATUS_INVALID_INPUT, "neither `response`");
    REQUIRE(strcmp(kudos_error_kind(), "invalid_input") == 0 && kudos_error_hint() != NULL);
    FAILS(kudos_score(engine, "{\"input_ids\": []}", &text), KUDOS_STATUS_INVALID_INPUT, "no tokens");
    FAILS(kudos_score(engine, "{\"input_ids\": [4000000000]}", &text), KUDOS_STATUS_INVALID_INPUT, "4000000000");
    FAILS(kudos_submit(engine, REQUEST, NULL), ARGUMENT, "`result` is NULL");
    FAILS(kudos_submit(engine, "{}", &result), KUDOS_STATUS_INVALID_INPUT, "neither");
    REQUIRE(result == 0);
    FAILS(kudos_render(engine, "{}", &text), KUDOS_STATUS_INVALID_INPUT, "neither");
    FAILS(kudos_info(engine, NULL), ARGUMENT, "`info` is NULL");
    FAILS(kudos_score_ids(engine, NULL, 2, &reward), ARGUMENT, "`ids` is NULL");
    REQUIRE(reward == 0);
    FAILS(kudos_score_ids(engine, NULL, 0, &reward), KUDOS_STATUS_INVALID_INPUT, "no tokens");
    FAILS(kudos_score_ids(engine, ids, SIZE_MAX, &reward), ARGUMENT, "more than memory can hold");
    FAILS(kudos_score_ids(engine, ids, 2, NULL), ARGUMENT, "`reward` is NULL");

    // Rewards beyond the capacity, whose number is written.
    const char *three = "{\"prompt\": \"What is 1+1?\", \"responses\": [\"1\", \"2\", \"3\"]}";
    float rewards[4] = {9, 9, 9, 9};
    FAILS(kudos_rewards(engine, three, NULL, 0, &count), ARGUMENT, "has 3 rewards, and `capacity` is 0");
    REQUIRE(count == 3);
    FAILS(kudos_rewards(engine, three, rewards, 2, &count), ARGUMENT, "has 3 rewards, and `capacity` is 2");
    FAILS(kudos_rewards(engine, three, NULL, 3, &count), ARGUMENT, "`rewards` is NULL");
    FAILS(kudos_rewards(engine, three, rewards, 3, NULL), ARGUMENT, "`count` is NULL");
    REQUIRE(rewards[0] == 9);
    REQUIRE(kudos_rewards(engine, three, rewards, 4, &count) == KUDOS_STATUS_OK && count == 3);
    REQUIRE(isfinite(rewards[2]) && rewards[2] != 9 && rewards[3] == 9);
    REQUIRE(kudos_score_ids(engine, ids, 2, &reward) == KUDOS_STATUS_OK && isfinite(reward) && reward != 0);

    // A response that cannot be scored beside one that can.
    KudosEngine narrow;
    const char *two = "{\"prompt\": \"What is 1+1?\", \"responses\": [\"2\", \"1 2 3 4 5 6 7 8 9 10 11 12 13 14\"]}";
    REQUIRE(kudos_open(model, "{\"device\": \"cpu\", \"max_tokens\": 42}", &narrow) == KUDOS_STATUS_OK);
    REQUIRE(kudos_score(narrow, two, &text) == KUDOS_STATUS_OK);
    REQUIRE(strstr(text, "null],\"rewards_bf16\"") != NULL && strstr(text, "\"kind\":\"too_long\"") != NULL);
    kudos_free(text);
    FAILS(kudos_rewards(narrow, two, rewards, 4, &count), KUDOS_STATUS_TOO_LONG, "the limit is 42");
    REQUIRE(count == 0);
    REQUIRE(kudos_info(narrow, &text) == KUDOS_STATUS_OK && strstr(text, "\"max_tokens\":42,\"labels\":1") != NULL);
    kudos_free(text);
    REQUIRE(kudos_render(narrow, REQUEST, &text) == KUDOS_STATUS_OK);
    REQUIRE(strstr(text, "\"input_ids\":[") != NULL && strstr(text, "\"reason\":\"last token\"") != NULL);
    kudos_free(text);
    REQUIRE(kudos_close(narrow) == KUDOS_STATUS_OK);

    // A handle of the other kind, of a result that was taken, and of an engine that is closed.
    REQUIRE(kudos_submit(engine, REQUEST, &result) == KUDOS_STATUS_OK);
    FAILS(kudos_score(result, REQUEST, &text), ARGUMENT, "is a result, expected an engine");
    FAILS(kudos_close(result), ARGUMENT, "is a result, expected an engine");
    FAILS(kudos_wait(engine, &text), ARGUMENT, "is an engine, expected a result");
    FAILS(kudos_cancel(engine), ARGUMENT, "is an engine, expected a result");
    FAILS(kudos_wait(result, NULL), ARGUMENT, "`text` is NULL");
    REQUIRE(kudos_wait(result, &text) == KUDOS_STATUS_OK && text != NULL);
    kudos_free(text);
    FAILS(kudos_wait(result, &text), ARGUMENT, "is closed, expected a result");
    FAILS(kudos_poll(result, &text), ARGUMENT, "is closed, expected a result");
    FAILS(kudos_cancel(result), ARGUMENT, "is closed, expected a result");

    // A failure that is a result closes its handle too.
    REQUIRE(kudos_submit(engine, "{\"input_ids\": []}", &result) == KUDOS_STATUS_OK);
    FAILS(kudos_poll(result, &text), KUDOS_STATUS_INVALID_INPUT, "no tokens");
    FAILS(kudos_poll(result, &text), ARGUMENT, "is closed, expected a result");

    // Engines and results that are not closed stay allocated until the process ends.
    REQUIRE(kudos_submit(engine, REQUEST, &result) == KUDOS_STATUS_OK);
    REQUIRE(kudos_cancel(result) == KUDOS_STATUS_OK);
    REQUIRE(kudos_submit(engine, REQUEST, &result) == KUDOS_STATUS_OK);
    REQUIRE(kudos_abort(engine) == KUDOS_STATUS_OK);
    KudosStatus status = kudos_wait(result, &text);
    REQUIRE(status == KUDOS_STATUS_STOPPED || status == KUDOS_STATUS_OK);
    REQUIRE((status == KUDOS_STATUS_OK) == (text != NULL));
    kudos_free(text);
    FAILS(kudos_score(engine, REQUEST, &text), ARGUMENT, "is closed, expected an engine");
    FAILS(kudos_close(engine), ARGUMENT, "is closed, expected an engine");
    REQUIRE(kudos_open(model, "{\"device\": \"cpu\"}", &engine) == KUDOS_STATUS_OK);
    REQUIRE(kudos_submit(engine, REQUEST, &result) == KUDOS_STATUS_OK);
    puts("every mistake is an error");
    return 0;
}
