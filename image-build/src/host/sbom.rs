//! The list of every file in the host's root with its origin, as CycloneDX 1.6 (ECMA-424): a component for each package,
//! and in it a component for each of its files. No time and no serial number: the same root gives the same list.

use super::tree::{Files, Origin};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The list for a root of this version.
#[must_use]
pub fn cyclonedx(version: &str, files: &Files) -> Value {
    let mut packages: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for (path, file) in files {
        let entry = json!({
            "type": "file",
            "name": format!("/{path}"),
            "hashes": [{ "alg": "SHA-256", "content": file.sha256 }],
            "properties": [
                { "name": "redoubt:size", "value": file.size.to_string() },
                { "name": "redoubt:executable", "value": file.executable.to_string() },
            ],
        });
        let (name, package) = match file.origin {
            Origin::Ours => {
                ("host-os", json!({ "type": "application", "name": "host-os", "version": version }))
            }
            Origin::Package(input) => {
                let purl =
                    format!("pkg:deb/debian/{}@{}?arch={}", input.name, escaped(&input.version), input.arch);
                let package = json!({
                    "type": "library",
                    "bom-ref": purl,
                    "name": input.name,
                    "version": input.version,
                    "purl": purl,
                    "hashes": [{ "alg": "SHA-256", "content": input.sha256 }],
                });
                (input.name.as_str(), package)
            }
        };
        packages.entry(name.to_owned()).or_insert((package, Vec::new())).1.push(entry);
    }
    let components: Vec<Value> = packages
        .into_values()
        .map(|(mut package, files)| {
            package["components"] = files.into();
            package
        })
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": { "type": "operating-system", "name": "Redoubt HostOS", "version": version } },
        "components": components,
    })
}

/// A version as package URLs have it: percent-encoded.
fn escaped(version: &str) -> String {
    version.replace(':', "%3A").replace('+', "%2B").replace('~', "%7E")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::tree::File, lock::tests::input};
    use release::Digest;

    #[test]
    fn every_file_stands_below_its_package() {
        let mut package = input("qemu", b"deb");
        package.version = "1:10+ds~1".into();
        let file =
            |origin, content: &[u8]| File { origin, sha256: Digest::of(content), size: 3, executable: false };
        let files = Files::from([
            ("usr/bin/qemu".to_owned(), file(Origin::Package(&package), b"one")),
            ("usr/share/x".to_owned(), file(Origin::Package(&package), b"two")),
            ("usr/bin/host-os".to_owned(), file(Origin::Ours, b"own")),
        ]);
        let bom = cyclonedx("1.0", &files);
        let components = bom["components"].as_array().unwrap();
        assert_eq!(components.len(), 2);
        assert_eq!(components[0]["components"][0]["name"], "/usr/bin/host-os");
        assert_eq!(components[1]["purl"], "pkg:deb/debian/qemu@1%3A10%2Bds%7E1?arch=all");
        assert_eq!(components[1]["hashes"][0]["content"], Digest::of(b"deb").to_string());
        assert_eq!(components[1]["components"][1]["hashes"][0]["content"], Digest::of(b"two").to_string());
    }
}
