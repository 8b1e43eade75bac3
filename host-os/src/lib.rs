//! The host agent: checks the machine and the release, launches and watches the guest.
