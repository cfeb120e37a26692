//! What is drawn of measurements is what their records give.

mod common;

use std::process::Command;

#[test]
fn plots_are_what_the_records_give() {
    let script = common::root().join("benches/plots.py");
    let output = Command::new("python3").arg(script).arg("--check").output().expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
