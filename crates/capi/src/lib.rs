//! The C library: the functions that `kudos.h` declares.
//!
//! C has numbers for engines and results (`handles`), strings for requests and results (`requests`,
//! `options`), a status for every call, and the last failure of each thread (`error`). `border`
//! turns pointers into values, and panics into failures. The header is made from this file and
//! `error` by cbindgen, and committed; `tests/capi` makes it again and compares.
//!
//! Rust programs use the library `kudos`.
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(
    clippy::missing_safety_doc,
    reason = "kudos.h states once, for all functions, what pointers point to"
)]

#[doc(hidden)]
pub mod border;
mod error;
mod handles;
mod options;
mod requests;

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use kudos::Engine;
use serde_json::json;

use border::{Output, bytes, copy_out, elements, free, guarded, null, owned, text};
use error::Failure;
pub use error::{KudosStatus, kudos_error_hint, kudos_error_kind, kudos_error_message, kudos_error_place};

/// An open model. Threads may share it.
pub type KudosEngine = u64;

/// A result that is being computed. One thread at a time may use it.
pub type KudosResult = u64;

/// The version of the package, for C.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("the version has a NUL"),
};

/// Returns the library's version, such as "0.1.0". The string is the library's and is always valid.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Opens the model in the folder `model`, in Hugging Face's layout, and writes its handle to
/// `engine`.
///
/// `options` is a JSON object with the options of `kudos score`, with underscores in their names,
/// such as {"device": "cpu", "max_tokens": 8192}; or NULL for the defaults. An unknown option is an
/// error that lists the known ones. `template_var` is an object of variables. Only the command has
/// the options of ranks in several processes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_open(
    model: *const c_char,
    options: *const c_char,
    engine: *mut KudosEngine,
) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a handle, as kudos.h says, and
        // uses it for nothing else during the call.
        let engine = unsafe { Output::new(engine, 0, "engine") }?;
        // SAFETY: C's caller states that it is a string that ends in NUL and stays as it is.
        let model = unsafe { text(model, "model") }?;
        // SAFETY: as before, and it is not NULL.
        let options = (!options.is_null()).then(|| unsafe { text(options, "options") }).transpose()?;
        let opened = options::builder(Path::new(model), options)?.open()?;
        engine.set(handles::add_engine(opened));
        Ok(KudosStatus::Ok)
    })
}

/// Closes an engine for all threads: refuses what is scored or submitted from here on, scores what
/// is queued, and returns when that is done. The results of what was submitted stay valid until
/// they are taken or cancelled.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_close(engine: KudosEngine) -> KudosStatus {
    guarded(|| {
        handles::remove_engine(engine)?.close();
        Ok(KudosStatus::Ok)
    })
}

/// Closes an engine without scoring what is queued: threads that wait for it, and results, get
/// KUDOS_STATUS_STOPPED. Returns after the pass that runs.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_abort(engine: KudosEngine) -> KudosStatus {
    guarded(|| {
        handles::remove_engine(engine)?.abort();
        Ok(KudosStatus::Ok)
    })
}

/// Writes a JSON object that describes an engine to `info`, to be freed by `kudos_free`: its
/// `device`, the `reason` for that (null where it was asked for), `max_tokens`, the `labels` of its
/// head, and its `warnings`, which may grow as inputs are scored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_info(engine: KudosEngine, info: *mut *mut c_char) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a pointer, as kudos.h says, and
        // uses it for nothing else during the call.
        let info = unsafe { Output::new(info, ptr::null_mut(), "info") }?;
        let engine = handles::engine(engine)?;
        let device = engine.device();
        let object = json!({
            "device": device.to_string(),
            "reason": device.reason,
            "max_tokens": engine.plan().max_tokens,
            "labels": engine.labels(),
            "warnings": engine.warnings(),
        });
        info.set(owned(&object.to_string()));
        Ok(KudosStatus::Ok)
    })
}

/// Scores a request and writes its result to `result`, to be freed by `kudos_free`.
///
/// `request` is a JSON object as on a line of `kudos score`: {"messages": [..]}, {"prompt": ..,
/// "response": ..}, several "responses", or {"input_ids": [..]}. The result is a JSON object with
/// the fields of an output line: `id` where the request has one, then `reward` and others, or for
/// "responses" `rewards` and others. A response of several that cannot be scored, being too long
/// for example, is no failure of the call: its reward is null, and it has an entry in `errors`. A
/// failure of the engine is one of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_score(
    engine: KudosEngine,
    request: *const c_char,
    result: *mut *mut c_char,
) -> KudosStatus {
    // SAFETY: the caller of this function states the same.
    unsafe {
        answer(engine, request, result, |engine, request| requests::submit(engine, request)?.wait().text())
    }
}

/// Scores a request as `kudos_score` does, writes its rewards to `rewards`, which has memory for
/// `capacity` of them, and their number to `count`. Nothing is scored where there are more than
/// `capacity`; that number is written all the same. The first response that cannot be scored is a
/// failure of the call, which then writes no reward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_rewards(
    engine: KudosEngine,
    request: *const c_char,
    rewards: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a number, as kudos.h says, and
        // uses it for nothing else during the call.
        let count = unsafe { Output::new(count, 0, "count") }?;
        let engine = handles::engine(engine)?;
        // SAFETY: C's caller states that it is a string that ends in NUL and stays as it is.
        let request = unsafe { bytes(request, "request") }?;
        let wanted = requests::count(request)?;
        if wanted > capacity {
            count.set(wanted);
            let message = format!("the request has {wanted} rewards, and `capacity` is {capacity}");
            return Err(Failure::argument(message, "give memory for one reward per response"));
        }
        if rewards.is_null() {
            return Err(null("rewards"));
        }
        let scored = requests::submit(&engine, request)?.wait().rewards()?;
        // SAFETY: it is not NULL and has memory for `capacity` rewards, as C's caller states; there
        // is one per response, which is at most `capacity`.
        unsafe { copy_out(&scored, rewards) };
        count.set(scored.len());
        Ok(KudosStatus::Ok)
    })
}

/// Scores `count` token ids as they are, and writes the reward to `reward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_score_ids(
    engine: KudosEngine,
    ids: *const u32,
    count: usize,
    reward: *mut f32,
) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a number, as kudos.h says, and
        // uses it for nothing else during the call.
        let reward = unsafe { Output::new(reward, 0.0, "reward") }?;
        let engine = handles::engine(engine)?;
        // SAFETY: C's caller states that there are `count` ids, which stay as they are.
        let ids = unsafe { elements(ids, count, "ids") }?;
        reward.set(engine.submit(ids).wait()?.wait()?.reward);
        Ok(KudosStatus::Ok)
    })
}

/// Submits a request, as for `kudos_score`, and writes the handle of its result to `result`.
/// Renders and tokenizes before it returns, and blocks while the engine's queue is full, but does
/// not wait for the score. A request that cannot be read is a failure of this call; other failures
/// are those of the result. The handle is closed when `kudos_poll` or `kudos_wait` has taken the
/// result, or by `kudos_cancel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_submit(
    engine: KudosEngine,
    request: *const c_char,
    result: *mut KudosResult,
) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a handle, as kudos.h says, and
        // uses it for nothing else during the call.
        let result = unsafe { Output::new(result, 0, "result") }?;
        let engine = handles::engine(engine)?;
        // SAFETY: C's caller states that it is a string that ends in NUL and stays as it is.
        let request = unsafe { bytes(request, "request") }?;
        result.set(handles::add_result(requests::submit(&engine, request)?));
        Ok(KudosStatus::Ok)
    })
}

/// Takes a result that is there: writes it to `text`, to be freed by `kudos_free`, and closes its
/// handle, as it does for a result that is a failure. Otherwise returns KUDOS_STATUS_NOT_READY at
/// once, and the handle stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_poll(result: KudosResult, text: *mut *mut c_char) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a pointer, as kudos.h says, and
        // uses it for nothing else during the call.
        let text = unsafe { Output::new(text, ptr::null_mut(), "text") }?;
        let (mut waiting, in_use) = handles::take_result(result)?;
        if !waiting.poll() {
            in_use.put_back(waiting);
            return Ok(KudosStatus::NotReady);
        }
        text.set(owned(&waiting.wait().text()?));
        Ok(KudosStatus::Ok)
    })
}

/// Waits for a result and takes it, as `kudos_poll` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_wait(result: KudosResult, text: *mut *mut c_char) -> KudosStatus {
    guarded(|| {
        // SAFETY: C's caller states that it points to memory for a pointer, as kudos.h says, and
        // uses it for nothing else during the call.
        let text = unsafe { Output::new(text, ptr::null_mut(), "text") }?;
        let (waiting, _in_use) = handles::take_result(result)?;
        text.set(owned(&waiting.wait().text()?));
        Ok(KudosStatus::Ok)
    })
}

/// Drops a result and closes its handle. What is still queued for it is not computed.
#[unsafe(no_mangle)]
pub extern "C" fn kudos_cancel(result: KudosResult) -> KudosStatus {
    guarded(|| {
        let (waiting, _in_use) = handles::take_result(result)?;
        drop(waiting);
        Ok(KudosStatus::Ok)
    })
}

/// Writes the text and the token ids that would be scored to `result`, to be freed by `kudos_free`:
/// a JSON object with the fields of an output line of `kudos render`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_render(
    engine: KudosEngine,
    request: *const c_char,
    result: *mut *mut c_char,
) -> KudosStatus {
    // SAFETY: the caller of this function states the same.
    unsafe { answer(engine, request, result, requests::render) }
}

/// Frees a string that a function wrote to a `char **`. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kudos_free(text: *mut c_char) {
    // A drop of bytes does not panic.
    // SAFETY: C's caller states that it is NULL, or such a string that was not freed.
    unsafe { free(text) }
}

/// Writes the text that `work` returns for an engine and a request to `result`.
///
/// # Safety
///
/// As kudos.h says: `request` is NULL or a string that ends in NUL and stays as it is during the
/// call, and `result` is NULL or points to memory for a pointer, which is used for nothing else.
unsafe fn answer(
    engine: KudosEngine,
    request: *const c_char,
    result: *mut *mut c_char,
    work: fn(&Engine, &[u8]) -> kudos::Result<String>,
) -> KudosStatus {
    guarded(|| {
        // SAFETY: the caller states that it is NULL, or memory for a pointer that is used for nothing
        // else.
        let result = unsafe { Output::new(result, ptr::null_mut(), "result") }?;
        let engine = handles::engine(engine)?;
        // SAFETY: the caller states that it is NULL, or a string that ends in NUL and stays as it is.
        let request = unsafe { bytes(request, "request") }?;
        result.set(owned(&work(&engine, request)?));
        Ok(KudosStatus::Ok)
    })
}
