//! PEM around DER: how certificates and revocation lists lie in files.

/// The DER in a PEM text of one block with this label; anything else is given back as it is, for the parser of the
/// contents to judge.
pub(crate) fn to_der(bytes: &[u8], label: &str) -> Vec<u8> {
    one_block(bytes, label).unwrap_or_else(|| bytes.to_vec())
}

fn one_block(bytes: &[u8], label: &str) -> Option<Vec<u8>> {
    let text = bytes.trim_ascii();
    // The parser would skip text before the block.
    if !text.starts_with(b"-----BEGIN ") {
        return None;
    }
    let (rest, pem) = x509_parser::pem::parse_x509_pem(text).ok()?;
    (rest.trim_ascii().is_empty() && pem.label == label).then_some(pem.contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_of_the_right_label_is_unwrapped() {
        let pem = |label: &str| format!("-----BEGIN {label}-----\nMAMCAQA=\n-----END {label}-----\n");
        let good = pem("CERTIFICATE");
        let der = [0x30, 3, 2, 1, 0];
        assert_eq!(to_der(good.as_bytes(), "CERTIFICATE"), der);
        assert_eq!(to_der(format!("\n {good}\n").as_bytes(), "CERTIFICATE"), der);
        for other in
            [pem("X509 CRL"), format!("text\n{good}"), format!("{good}{good}"), good.replace("MAM", "M*M")]
        {
            assert_eq!(to_der(other.as_bytes(), "CERTIFICATE"), other.as_bytes());
        }
        assert_eq!(to_der(&der, "CERTIFICATE"), der);
    }
}
