//! The inputs of a batch, from a file.

use super::output::Failure;
use crate::wire::{Batch, Curve, ItemBody, SignInput};
use std::path::Path;

/// Reads a JSON array of items, or one item a line.
pub fn read(path: &Path, curve: Curve) -> Result<Batch, Failure> {
    let failed = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let items = parse(&text, curve).map_err(failed)?;
    let count = items.len();
    Batch::new(items).ok_or_else(|| failed(format!("a batch has 1 to {} items, and here are {count}", Batch::MAX)))
}

fn parse(text: &str, curve: Curve) -> Result<Vec<SignInput>, String> {
    let items: Vec<ItemBody> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let item = |(number, line)| serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"));
        lines.map(item).collect::<Result<_, _>>()?
    };
    let read = |(index, item): (usize, ItemBody)| {
        item.read(curve).map_err(|(code, message)| format!("item {index}: {message} ({code})"))
    };
    items.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn an_array_and_lines_mean_the_same() {
        let digest = "5a".repeat(32);
        let one = format!(r#"{{"digest": "{digest}"}}"#);
        let two = format!(r#"{{"digest": "{digest}", "path": "m/0"}}"#);
        let array = parse(&format!(" [{one},\n {two}]"), Curve::Secp256k1).unwrap();
        assert_eq!(array, parse(&format!("{one}\n\n{two}\n"), Curve::Secp256k1).unwrap());
        let paths: Vec<_> =
            array.iter().map(|item| matches!(item, SignInput::Secp256k1 { path: Some(_), .. })).collect();
        assert_eq!(paths, [false, true]);
        assert_eq!(parse("", Curve::Secp256k1).unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let good = format!(r#"{{"digest": "{}"}}"#, "5a".repeat(32));
        let said = |text: String| parse(&text, Curve::Secp256k1).unwrap_err();
        assert!(said(format!("{good}\n{{\"digest\": \"5a\"}}")).starts_with("item 1: digest is not 64"));
        assert!(said(format!("{good}\n{{\"digset\": \"5a\"}}")).starts_with("line 2: unknown field"));
        assert!(said(format!("[{good}, {{\"message\": \"\"}}]")).starts_with("item 1: secp256k1 signs a digest"));
    }
}
