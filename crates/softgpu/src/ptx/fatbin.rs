//! The container that `nvcc -fatbin` writes: a 16-byte header, then entries, of which the PTX ones
//! are read.

const MAGIC: u32 = 0xBA55_ED50;
const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
/// zstd (0x8000) or LZ4 (0x2000): the container must be made with `--compress-mode=none`.
const COMPRESSED: u64 = 0xA000;

/// The note `.note.nv.cuinfo` of machine code: bytes of its name, bytes of its description, its
/// type, its name. The description holds 16-bit numbers: a version, an architecture, the toolkit.
const CUINFO: &[u8] = b"\x0C\0\0\0\x08\0\0\0\xE8\x03\0\0NVIDIA Corp\0";

/// The code that an image holds for a device.
#[derive(Clone, Debug)]
pub struct Image {
    /// The PTX text that is interpreted.
    pub text: String,
    /// Whether there is machine code beside it, which a driver would prefer.
    pub machine_code: Option<MachineCode>,
}

/// Machine code, which is not run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineCode {
    /// The toolkit that made it, 130 for 13.0; `None` where it is compressed or does not say.
    pub toolkit: Option<u32>,
}

/// The PTX text in `image` that a device of compute capability `cc` (80, 90, ...) would run, and
/// whether there is machine code for it.
///
/// `image` starts with a fatbin header, or is PTX text ended by a zero byte.
///
/// # Errors
/// No PTX for this capability, compressed PTX, or an image of another kind.
///
/// # Safety
/// `image` points to a whole fatbin or to a string that ends in a zero byte, as `cuModuleLoadData`
/// demands.
pub unsafe fn ptx_for(image: *const u8, cc: u32) -> Result<Image, String> {
    // SAFETY: the caller's image has at least its first four bytes in either form (a PTX text is
    // longer than that).
    let magic = unsafe { image.cast::<u32>().read_unaligned() };
    if magic != MAGIC {
        // SAFETY: the caller promises a zero byte at the end.
        let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) };
        let text = text.to_str().map_err(|_| "the image is neither a fatbin nor PTX text".to_string())?;
        return if text.contains(".version") {
            Ok(Image { text: text.to_string(), machine_code: None })
        } else {
            Err("the image is neither a fatbin nor PTX text".into())
        };
    }
    // SAFETY: a fatbin header is 16 bytes and has at +8 the count of bytes that follow it.
    let bytes = unsafe {
        let payload = image.add(8).cast::<u64>().read_unaligned() as usize;
        std::slice::from_raw_parts(image, 16 + payload)
    };
    from_container(bytes, cc)
}

fn from_container(bytes: &[u8], cc: u32) -> Result<Image, String> {
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let long =
        |at: usize| -> Option<u64> { Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
    let mut at = word(4).map_or(16, |w| (w >> 16) as usize).max(16);
    let mut best: Option<(u32, String)> = None;
    let (mut seen, mut machine_code) = (Vec::new(), None);
    while let (Some(kind), Some(header), Some(payload)) = (word(at), word(at + 4), long(at + 8)) {
        let (header, payload) = (header as usize, payload as usize);
        if header == 0 {
            break;
        }
        if (kind & 0xFFFF) as u16 == KIND_PTX {
            let arch = word(at + 28).unwrap_or(0);
            seen.push(arch.to_string());
            if long(at + 40).unwrap_or(0) & COMPRESSED != 0 {
                return Err("the PTX in this fatbin is compressed; build it with --compress-mode=none".into());
            }
            let body = bytes.get(at + header..at + header + payload).ok_or("the fatbin is cut short")?;
            let end = body.iter().position(|&b| b == 0).unwrap_or(body.len());
            let text = String::from_utf8_lossy(&body[..end]).into_owned();
            let exact_only = text.contains(&format!(".target sm_{arch}a"));
            let fits = if exact_only { arch == cc } else { arch <= cc };
            if fits && best.as_ref().is_none_or(|(a, _)| *a <= arch) {
                best = Some((arch, text));
            }
        }
        // Machine code runs on later devices of its own generation.
        let arch = word(at + 28).unwrap_or(0);
        if (kind & 0xFFFF) as u16 == KIND_ELF && arch / 10 == cc / 10 && arch <= cc {
            let compressed = long(at + 40).unwrap_or(0) & COMPRESSED != 0;
            let body = bytes.get(at + header..at + header + payload).filter(|_| !compressed);
            machine_code = Some(MachineCode { toolkit: body.and_then(toolkit_of) });
        }
        at += header + payload;
    }
    best.map(|(_, text)| Image { text, machine_code }).ok_or_else(|| {
        format!("no PTX in this fatbin runs on compute capability {cc} (it has: {})", seen.join(", "))
    })
}

/// The toolkit that made machine code, by its note.
fn toolkit_of(elf: &[u8]) -> Option<u32> {
    let note = elf.windows(CUINFO.len()).position(|bytes| bytes == CUINFO)? + CUINFO.len();
    let toolkit = elf.get(note + 4..note + 6)?;
    Some(u32::from(u16::from_le_bytes([toolkit[0], toolkit[1]])))
}
