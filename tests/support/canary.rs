//! Searching everything that was written for secrets that must not be there.

use std::path::{Path, PathBuf};

/// A secret in every form in which it could have been written: as it is, in hex, and in base64 at each of the three places that it
/// can have in a longer text.
pub struct Canary {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Canary {
    pub fn new(name: &str, secret: &[u8]) -> Self {
        assert!(secret.len() >= 12, "{name} is too short to be told from chance");
        let mut forms = vec![secret.to_vec()];
        forms.push(data_encoding::HEXLOWER.encode(secret).into_bytes());
        forms.push(data_encoding::HEXUPPER.encode(secret).into_bytes());
        for skipped in 0..3 {
            // Whole groups of three bytes, which encode the same whatever surrounds them.
            let whole = &secret[skipped..];
            let whole = &whole[..whole.len() / 3 * 3];
            for encoding in [&data_encoding::BASE64, &data_encoding::BASE64URL] {
                forms.push(encoding.encode(whole).into_bytes());
            }
        }
        Self { name: name.to_owned(), forms }
    }
}

/// Every file below these folders.
pub fn files(folders: &[&Path]) -> Vec<PathBuf> {
    let mut waiting: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
    let mut files = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files.push(path);
        }
    }
    files
}

/// Searches the files, and returns how many bytes they had. Panics where one holds a canary.
pub fn search(files: &[PathBuf], canaries: &[Canary]) -> usize {
    let mut searched = 0;
    for path in files {
        let content = std::fs::read(path).unwrap();
        searched += content.len();
        for canary in canaries {
            for form in &canary.forms {
                assert!(!holds(&content, form), "{} holds {}", path.display(), canary.name);
            }
        }
    }
    searched
}

fn holds(content: &[u8], form: &[u8]) -> bool {
    let mut rest = content;
    while let Some(at) = rest.iter().position(|byte| *byte == form[0]) {
        rest = &rest[at..];
        if rest.starts_with(form) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}
