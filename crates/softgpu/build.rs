//! The library must stay loaded: callers open it, close it and open it again, and its devices must
//! survive that.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
