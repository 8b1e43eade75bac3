//! SEV-SNP evidence: report, certificate chain, policy, launch measurement, binding to TLS. No I/O.
