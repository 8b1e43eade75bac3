//! SMBIOS tables are the firmware's word only.
#![no_main]

libfuzzer_sys::fuzz_target!(|table: &[u8]| {
    let _ = hwspec::smbios::Smbios::parse(table);
});
