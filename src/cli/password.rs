//! Where a password comes from: a file, the environment, or a prompt. Never the command line, which others can read.

use super::output::Failure;
use crate::vault::Password;
use crate::wire::KdfParams;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use std::io::IsTerminal;
use std::path::Path;
use zeroize::Zeroizing;

/// Reads the password: from the file named on the command line, else from the settings, else from the terminal (twice for a
/// new one). Line ends at its end do not count.
pub fn read(
    file: Option<&Path>,
    configured: Option<Zeroizing<String>>,
    kdf: KdfParams,
    is_new: bool,
) -> Result<Password, Failure> {
    let text = match (file, configured) {
        (Some(path), _) => read_file(path)?,
        (None, Some(text)) => text,
        (None, None) if std::io::stdin().is_terminal() => prompt("Password: ", is_new)?,
        (None, None) => {
            return Err(Failure::usage("no password: use --password-file, TREFOIL_PASSWORD or a terminal"));
        }
    };
    parse(&text, kdf)
}

/// Reads a new password, twice: one is sealed into the job, the other checks what came of it.
pub fn read_new(file: Option<&Path>, kdf: KdfParams) -> Result<(Password, Password), Failure> {
    let text = match file {
        Some(path) => read_file(path)?,
        None if std::io::stdin().is_terminal() => prompt("New password: ", true)?,
        None => return Err(Failure::usage("no new password: use --new-password-file or a terminal")),
    };
    Ok((parse(&text, kdf)?, parse(&text, kdf)?))
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = std::fs::read_to_string(path);
    Ok(Zeroizing::new(text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?))
}

fn parse(text: &str, kdf: KdfParams) -> Result<Password, Failure> {
    let text = text.trim_end_matches(['\r', '\n']);
    let bytes = match kdf {
        KdfParams::Argon2id { .. } => Zeroizing::new(text.as_bytes().to_vec()),
        KdfParams::Hkdf => secret(text)?,
    };
    Password::new(bytes).map_err(|error| Failure::usage(error.to_string()))
}

fn prompt(question: &str, is_new: bool) -> Result<Zeroizing<String>, Failure> {
    let ask = |text: &str| {
        let typed = rpassword::prompt_password(text).map(Zeroizing::new);
        typed.map_err(|error| Failure::usage(format!("no password: {error}")))
    };
    let password = ask(question)?;
    if is_new && *ask("Again: ")? != *password {
        return Err(Failure::usage("the passwords differ"));
    }
    Ok(password)
}

/// 32 machine-made bytes: 64 hex digits or 44 base64 characters.
fn secret(text: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let decoded = match text.len() {
        64 => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
        44 => BASE64.decode(text.as_bytes()).ok(),
        _ => None,
    };
    let decoded = decoded.filter(|bytes| bytes.len() == 32).map(Zeroizing::new);
    decoded.ok_or_else(|| Failure::usage("with hkdf the password is 32 random bytes as hex or base64"))
}
