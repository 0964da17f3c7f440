//! Every code of the closed list is reached: some test names it as what it expects.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::Path;
use trefoil::wire::ErrorCode;

#[test]
fn every_code_is_expected_by_a_test() {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("codes.rs") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    assert!(texts.len() > 20, "only {} files of tests were found", texts.len());
    // A name of its own, not the beginning of a longer one.
    let names = |text: &String, name: &str| {
        let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
        let named = |prefix: &str| text.split(&format!("{prefix}{name}")).skip(1).any(ends);
        // Or by its bare name, where the names of all codes are in use.
        named("ErrorCode::") || text.contains("    use ErrorCode::") && named(" ")
    };
    let nowhere = |code: &&ErrorCode| !texts.iter().any(|text| names(text, &format!("{code:?}")));
    let missing: Vec<_> = ErrorCode::ALL.iter().filter(nowhere).collect();
    assert!(missing.is_empty(), "no test expects {missing:?}");
}
