//! A stand-in for the AMD Secure Processor in the virtual profile. Never linked by production binaries.
