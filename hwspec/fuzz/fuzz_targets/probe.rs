//! A probe from anyone is refused or judged.
#![no_main]

use hwspec::{Probe, Spec, check};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(probe) = Probe::from_json(bytes) {
        for spec in Spec::names().filter_map(|name| Spec::named(name).ok()) {
            check(&spec, &probe);
        }
    }
});
