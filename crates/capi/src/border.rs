//! The border to C: pointers in and out, and no panic across it.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::error::{Failure, KudosStatus, c_string, keep};

/// Runs the body of a call, keeps its failure, and returns its status. A panic is a failure of its
/// own kind.
pub fn guarded(body: impl FnOnce() -> Result<KudosStatus, Failure>) -> KudosStatus {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        body().unwrap_or_else(|failure| {
            let status = failure.status();
            keep(failure);
            status
        })
    }));
    outcome.unwrap_or_else(|payload| {
        let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "for a reason that is no text".to_owned(),
        };
        // The drop of a payload may panic again.
        std::mem::forget(payload);
        keep(Failure::panic(&message));
        KudosStatus::Panic
    })
}

/// Returns the bytes of a C string.
///
/// # Safety
///
/// `pointer` is NULL, or points to a string that ends in NUL and stays as it is for `'a`.
pub(crate) unsafe fn bytes<'a>(pointer: *const c_char, name: &str) -> Result<&'a [u8], Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: it is not NULL, so it is a string that ends in NUL and outlives `'a`, as the caller
    // states.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// Returns the text of a C string, which must be UTF-8.
///
/// # Safety
///
/// As for [`bytes`].
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller states what `bytes` asks for.
    let bytes = unsafe { bytes(pointer, name) }?;
    str::from_utf8(bytes).map_err(|error| {
        let message = format!("`{name}` is not UTF-8 at byte {}", error.valid_up_to() + 1);
        Failure::argument(message, "strings are given in UTF-8")
    })
}

/// Returns a copy of `count` elements of C's memory.
///
/// # Safety
///
/// `pointer` is NULL, or points to `count` elements, aligned, that stay as they are during the
/// call.
pub(crate) unsafe fn elements<T: Copy>(
    pointer: *const T,
    count: usize,
    name: &str,
) -> Result<Vec<T>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        let message = format!("`{name}` has {count} elements, more than memory can hold");
        return Err(Failure::argument(message, "give the number of elements"));
    }
    // SAFETY: it is not NULL, so it points to `count` elements, aligned, that stay as they are, as
    // the caller states; their bytes are at most `isize::MAX`.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) }.to_vec())
}

/// An output of a call, which is empty until it is set.
pub(crate) struct Output<T>(*mut T);

impl<T: Copy> Output<T> {
    /// Makes an output of a pointer, and writes the value of an empty one.
    ///
    /// # Safety
    ///
    /// `pointer` is NULL, or points to memory for a `T`, aligned, that this output alone may write
    /// as long as it exists.
    pub(crate) unsafe fn new(pointer: *mut T, empty: T, name: &str) -> Result<Self, Failure> {
        if pointer.is_null() {
            return Err(null(name));
        }
        let output = Self(pointer);
        output.set(empty);
        Ok(output)
    }

    /// Writes the output.
    pub(crate) fn set(&self, value: T) {
        // SAFETY: `new`, the only maker, was given memory for a `T`, aligned, which this output
        // alone writes while it exists. The memory may be uninitialised: a `T` is `Copy`, so
        // nothing in it is dropped.
        unsafe { self.0.write(value) }
    }
}

/// Makes a string that the caller in C owns, and that [`free`] frees.
pub(crate) fn owned(text: &str) -> *mut c_char {
    c_string(text).into_raw()
}

/// Frees a string that [`owned`] made. NULL is ignored.
///
/// # Safety
///
/// `text` is NULL, or a string that was made there and was not freed.
pub(crate) unsafe fn free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: it was made by `CString::into_raw` in `owned` and was not freed, as the
        // caller states.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Writes `values` to the start of C's memory.
///
/// # Safety
///
/// `pointer` points to memory for `values.len()` elements, aligned, or there are no values.
pub(crate) unsafe fn copy_out<T: Copy>(values: &[T], pointer: *mut T) {
    if !values.is_empty() {
        // SAFETY: there is memory for all values, as the caller states; a slice of ours overlaps
        // none of C's memory.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), pointer, values.len()) }
    }
}

/// Makes the failure of a pointer that is NULL.
pub(crate) fn null(name: &str) -> Failure {
    Failure::argument(format!("`{name}` is NULL"), "kudos.h says what each pointer points to")
}
