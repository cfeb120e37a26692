// kudos: rewards from reward models.
//
// Made by cbindgen from crates/capi/src; change it there.
//
// Errors. A function that can fail returns a `KudosStatus`, KUDOS_STATUS_OK where it did not. It then
// keeps, for its thread, what failed, where, and what to do: `kudos_error_message` and the others
// return that until a later call on the same thread fails. A failed call writes 0 or NULL to its
// outputs. No panic of the library crosses into C: it is an error, KUDOS_STATUS_PANIC.
//
// Handles. Engines and results are numbers, never 0, and none is used twice. A wrong handle, or one
// that is closed, is an error, KUDOS_STATUS_ARGUMENT, as is NULL for a pointer that is needed.
//
// Strings. All are UTF-8 and end in NUL. A string that is given to a function stays the caller's,
// and may be freed when the function returns. A string that a function writes to a `char **` is the
// caller's, to be freed by `kudos_free`. A `const char *` that a function returns is the library's.
//
// Threads. Every function may be called on every thread. Threads share one engine, and what they
// score at a time is batched together. A result is used by one thread at a time.


#ifndef KUDOS_H
#define KUDOS_H

#include <stddef.h>
#include <stdint.h>

// The outcome of a call. Values of later versions are added at the end.
typedef enum {
  // The call succeeded.
  KUDOS_STATUS_OK = 0,
  // A file or folder could not be read or written.
  KUDOS_STATUS_IO = 1,
  // An option is unknown, or has a value that cannot work.
  KUDOS_STATUS_OPTIONS = 2,
  // `config.json` is missing something, contradicts itself, or is not JSON.
  KUDOS_STATUS_CONFIG = 3,
  // The model needs something that is not implemented and would change its rewards.
  KUDOS_STATUS_UNSUPPORTED = 4,
  // A weight file is damaged, or its tensors are not the ones that `config.json` describes.
  KUDOS_STATUS_WEIGHTS = 5,
  // `tokenizer.json` or `tokenizer_config.json` is missing or cannot be used.
  KUDOS_STATUS_TOKENIZER = 6,
  // The chat template is missing, cannot be parsed, or refused this conversation.
  KUDOS_STATUS_TEMPLATE = 7,
  // The input cannot be scored: bad JSON, no messages, ids outside the vocabulary.
  KUDOS_STATUS_INVALID_INPUT = 8,
  // A conversation has more tokens than the model or the options allow.
  KUDOS_STATUS_TOO_LONG = 9,
  // A reward came out as NaN or infinite.
  KUDOS_STATUS_NON_FINITE = 10,
  // The engine's queue is full.
  KUDOS_STATUS_QUEUE_FULL = 11,
  // The device or the machine has too little memory.
  KUDOS_STATUS_MEMORY = 12,
  // The device or its driver is missing or failed.
  KUDOS_STATUS_DEVICE = 13,
  // The engine was closed, or stopped after an earlier failure.
  KUDOS_STATUS_STOPPED = 14,
  // A pointer is NULL, a handle is wrong or closed, or a string is not UTF-8.
  KUDOS_STATUS_ARGUMENT = 15,
  // The library panicked, which is a bug in it.
  KUDOS_STATUS_PANIC = 16,
  // A failure of a kind that this version of the C interface does not name.
  KUDOS_STATUS_OTHER = 17,
  // No failure: the result of `kudos_poll` is still being computed.
  KUDOS_STATUS_NOT_READY = 18,
} KudosStatus;

// An open model. Threads may share it.
typedef uint64_t KudosEngine;

// A result that is being computed. One thread at a time may use it.
typedef uint64_t KudosResult;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the library's version, such as "0.1.0". The string is the library's and is always valid.
const char *kudos_version(void);

// Opens the model in the folder `model`, in Hugging Face's layout, and writes its handle to
// `engine`.
//
// `options` is a JSON object with the options of `kudos score`, with underscores in their names,
// such as {"device": "cpu", "max_tokens": 8192}; or NULL for the defaults. An unknown option is an
// error that lists the known ones. `template_var` is an object of variables. Only the command has
// the options of ranks in several processes.
KudosStatus kudos_open(const char *model, const char *options, KudosEngine *engine);

// Closes an engine for all threads: refuses what is scored or submitted from here on, scores what
// is queued, and returns when that is done. The results of what was submitted stay valid until
// they are taken or cancelled.
KudosStatus kudos_close(KudosEngine engine);

// Closes an engine without scoring what is queued: threads that wait for it, and results, get
// KUDOS_STATUS_STOPPED. Returns after the pass that runs.
KudosStatus kudos_abort(KudosEngine engine);

// Writes a JSON object that describes an engine to `info`, to be freed by `kudos_free`: its
// `device`, the `reason` for that (null where it was asked for), `max_tokens`, the `labels` of its
// head, and its `warnings`, which may grow as inputs are scored.
KudosStatus kudos_info(KudosEngine engine, char **info);

// Scores a request and writes its result to `result`, to be freed by `kudos_free`.
//
// `request` is a JSON object as on a line of `kudos score`: {"messages": [..]}, {"prompt": ..,
// "response": ..}, several "responses", or {"input_ids": [..]}. The result is a JSON object with
// the fields of an output line: `id` where the request has one, then `reward` and others, or for
// "responses" `rewards` and others. A response of several that cannot be scored, being too long
// for example, is no failure of the call: its reward is null, and it has an entry in `errors`. A
// failure of the engine is one of the call.
KudosStatus kudos_score(KudosEngine engine, const char *request, char **result);

// Scores a request as `kudos_score` does, writes its rewards to `rewards`, which has memory for
// `capacity` of them, and their number to `count`. Nothing is scored where there are more than
// `capacity`; that number is written all the same. The first response that cannot be scored is a
// failure of the call, which then writes no reward.
KudosStatus kudos_rewards(KudosEngine engine,
                          const char *request,
                          float *rewards,
                          size_t capacity,
                          size_t *count);

// Scores `count` token ids as they are, and writes the reward to `reward`.
KudosStatus kudos_score_ids(KudosEngine engine, const uint32_t *ids, size_t count, float *reward);

// Submits a request, as for `kudos_score`, and writes the handle of its result to `result`.
// Renders and tokenizes before it returns, and blocks while the engine's queue is full, but does
// not wait for the score. A request that cannot be read is a failure of this call; other failures
// are those of the result. The handle is closed when `kudos_poll` or `kudos_wait` has taken the
// result, or by `kudos_cancel`.
KudosStatus kudos_submit(KudosEngine engine, const char *request, KudosResult *result);

// Takes a result that is there: writes it to `text`, to be freed by `kudos_free`, and closes its
// handle, as it does for a result that is a failure. Otherwise returns KUDOS_STATUS_NOT_READY at
// once, and the handle stays.
KudosStatus kudos_poll(KudosResult result, char **text);

// Waits for a result and takes it, as `kudos_poll` does.
KudosStatus kudos_wait(KudosResult result, char **text);

// Drops a result and closes its handle. What is still queued for it is not computed.
KudosStatus kudos_cancel(KudosResult result);

// Writes the text and the token ids that would be scored to `result`, to be freed by `kudos_free`:
// a JSON object with the fields of an output line of `kudos render`.
KudosStatus kudos_render(KudosEngine engine, const char *request, char **result);

// Frees a string that a function wrote to a `char **`. NULL is ignored.
void kudos_free(char *text);

// Returns the kind of this thread's last failure, in lower case, such as `invalid_input`; NULL
// where no call on this thread has failed. The string is the library's, and valid until a later
// call on this thread fails or the thread ends.
const char *kudos_error_kind(void);

// Returns the message of this thread's last failure: what was found, and what was expected. Like
// `kudos_error_kind` otherwise.
const char *kudos_error_message(void);

// Returns the place of this thread's last failure: a file, a tensor, a rank. NULL where it has
// none. Like `kudos_error_kind` otherwise.
const char *kudos_error_place(void);

// Returns what to do about this thread's last failure. NULL where that is unknown. Like
// `kudos_error_kind` otherwise.
const char *kudos_error_hint(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KUDOS_H */
