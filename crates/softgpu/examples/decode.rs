//! `decode FILE.ptx ...`: prints how the software GPU decodes each kernel, or the instructions that
//! it does not support.

fn main() {
    let mut refused = false;
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(why) => {
                eprintln!("error: `{path}`: {why}");
                refused = true;
                continue;
            }
        };
        match softgpu::ptx::parse(&text)
            .map_err(|why| vec![why])
            .and_then(|module| softgpu::decode::decode_module(&module))
        {
            Ok(programs) => {
                for p in programs {
                    let (w32, w64, predicates) = p.slots;
                    println!(
                        "{}: {} instructions, slots {w32} x 32, {w64} x 64, {predicates} predicates",
                        p.name,
                        p.code.len()
                    );
                }
            }
            Err(lines) => {
                refused = true;
                eprintln!("error: `{path}`");
                lines.iter().for_each(|line| eprintln!("  {line}"));
            }
        }
    }
    std::process::exit(i32::from(refused));
}
