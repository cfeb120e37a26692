//! [`VendorLibrary`]: a library of the vendor's, loaded by name at run time.

use std::fs;
use std::path::PathBuf;

use libloading::Library;

/// A shared library that stays loaded for the life of the process.
pub(super) struct VendorLibrary {
    name: &'static str,
    library: &'static Library,
}

impl VendorLibrary {
    /// Loads the first library of these names that is on the loader's path; `None` where there is
    /// none.
    pub(super) fn load(names: &[&'static str]) -> Option<Self> {
        names.iter().find_map(|&name| {
            // SAFETY: the library's initialisers are the vendor's own.
            let library = unsafe { Library::new(name) }.ok()?;
            // Leaked, so that its functions can be called at any time.
            Some(Self { name, library: Box::leak(Box::new(library)) })
        })
    }

    /// The name by which it was found.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The function of this name; an error where the library has none.
    ///
    /// # Safety
    ///
    /// `F` is the function's type in the vendor's header.
    pub(super) unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, libloading::Error> {
        // SAFETY: the caller's promise; the library is never unloaded.
        unsafe { self.library.get::<F>(name.as_bytes()) }.map(|function| *function)
    }
}

/// The file of the library in which `address` lies, as the kernel maps it; `None` where it does not
/// say.
pub(super) fn file_of(address: usize) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| path_at(line, address))
}

/// The path in a line such as `7f00-7fff r-xp 00000000 08:01 42   /usr/lib/libx.so`, if its range
/// holds `address`.
fn path_at(line: &str, address: usize) -> Option<PathBuf> {
    let (start, rest) = line.split_once('-')?;
    let (end, rest) = rest.split_once(' ')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    let path = &rest[rest.find('/')?..];
    (parse(start)?..parse(end)?).contains(&address).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_function_is_the_one_that_is_mapped_there() {
        let file = file_of(path_at as *const () as usize).unwrap();
        assert_eq!(file, std::env::current_exe().unwrap());
        assert_eq!(file_of(0), None);
        let line = "7f00-7fff r-xp 00000000 08:01 42                 /usr/lib/with a space/libx.so";
        assert_eq!(path_at(line, 0x7f00), Some("/usr/lib/with a space/libx.so".into()));
        assert_eq!(path_at(line, 0x7fff), None);
        assert_eq!(path_at("7f00-7fff rw-p 00000000 00:00 0 [heap]", 0x7f00), None);
    }

    #[test]
    fn a_library_that_is_nowhere_is_none() {
        assert!(VendorLibrary::load(&["libkudos-has-no-such-library.so"]).is_none());
    }
}
