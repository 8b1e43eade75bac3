//! What a prepared module looks like, and what is refused.

use super::*;

fn prepare_wat(text: &str) -> Result<Prepared, PrepareError> {
    prepare(&wat::parse_str(text).unwrap(), 1 << 20)
}

#[test]
fn state_becomes_exports_and_nothing_runs_by_itself() {
    let prepared = prepare_wat(
        r#"(module
            (import "ic0" "trap" (func (param i64 i64)))
            (memory i64 1)
            (table 1 funcref)
            (global i32 (i32.const 1))
            (global (mut i64) (i64.const 2))
            (func $start (data.drop $drop))
            (func (export "canister_update go"))
            (func (export "canister_heartbeat"))
            (start $start)
            (elem (i32.const 0) $start)
            (data (i64.const 7) "seven")
            (data $drop "passive")
            (@custom "icp:private enhanced-orthogonal-persistence" "x"))"#,
    )
    .unwrap();
    let features = FEATURES | WasmFeatures::MULTI_MEMORY;
    Validator::new_with_features(features).validate_all(&prepared.wasm).unwrap();
    assert!(prepared.memory64 && prepared.heartbeat && !prepared.inspects && prepared.keeps_memory());
    assert_eq!(prepared.data, [(7, b"seven".to_vec())]);
    assert_eq!(prepared.globals, [(format!("{RESERVED}global:1"), GlobalType::I64)]);
    assert_eq!(prepared.methods["go"], MethodKind::Update);
    let mut exports = Vec::new();
    for payload in Parser::new(0).parse_all(&prepared.wasm) {
        match payload.unwrap() {
            Payload::StartSection { .. } => panic!("start function is left"),
            Payload::ExportSection(reader) => {
                exports.extend(reader.into_iter().map(|export| export.unwrap().name.to_owned()));
            }
            Payload::CodeSectionEntry(body) => {
                for operator in body.get_operators_reader().unwrap() {
                    assert!(!matches!(operator.unwrap(), Operator::DataDrop { .. }));
                }
            }
            Payload::DataSection(reader) => {
                let sizes: Vec<_> = reader.into_iter().map(|data| data.unwrap().data.len()).collect();
                assert_eq!(sizes, [0, 7]);
            }
            _ => {}
        }
    }
    for name in [MEMORY, TABLE, START] {
        assert!(exports.iter().any(|export| export == name), "{name} is not exported");
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let cases = [
        (r#"(module (import "env" "f" (func)))"#, "import env.f"),
        (r#"(module (import "ic0" "m" (memory 1)))"#, "import ic0.m"),
        (r#"(module (func (export "canister_update a")) (func (export "canister_query a")))"#, "already"),
        (r#"(module (func (export "canister_update a") (param i32)))"#, "no parameters"),
        (r#"(module (func (export "canister_foo")))"#, "system interface"),
        (r#"(module (func (export "redoubt:start")))"#, "reserved"),
        (r#"(module (memory 1) (export "canister_init" (memory 0)))"#, "must be a function"),
        (r#"(module (memory 1) (memory 1))"#, "multiple memories"),
        (r#"(module (table 1 externref))"#, "externref"),
        (r#"(module (table 1 externref) (memory 1) (memory 1))"#, "gc types"),
        (r#"(module (memory 1 1 shared))"#, "threads"),
        (r#"(module (global (mut funcref) (ref.null func)))"#, "holds a reference"),
    ];
    for (module, expected) in cases {
        let error = prepare_wat(module).unwrap_err().to_string();
        assert!(error.contains(expected), "{module}: {error}");
    }
    assert_eq!(prepare(&[0; 9], 8).unwrap_err(), PrepareError::TooLarge(8));
}

#[test]
fn a_bomb_in_gzip_is_not_unpacked() {
    let mut packer =
        flate2::read::GzEncoder::new(std::io::repeat(0).take(1 << 20), flate2::Compression::best());
    let mut bomb = Vec::new();
    packer.read_to_end(&mut bomb).unwrap();
    assert!(bomb.len() < 4096);
    assert_eq!(prepare(&bomb, 4096).unwrap_err(), PrepareError::TooLarge(4096));
    assert!(matches!(prepare(&[0x1f, 0x8b, 1, 2], 99), Err(PrepareError::Gzip(_))));
}
