//! A specification from anyone is refused or read.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = hwspec::Spec::from_toml(text);
});
