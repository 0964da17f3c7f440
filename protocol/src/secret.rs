//! A value that is erased when dropped and never printed, copied, compared or serialised by accident.

use core::fmt;
use zeroize::Zeroize;

/// A secret: neither `Clone`, `Copy`, `PartialEq` nor `Serialize`; `Debug` prints no content; zeroised on drop.
///
/// It lives on the heap, so that moving the state that holds it from round to round copies a pointer and leaves no
/// unerased copy of the secret behind.
pub struct Secret<T: Zeroize>(Box<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes ownership of a secret value.
    pub fn new(value: T) -> Self {
        Self(Box::new(value))
    }

    /// The secret itself. Every use is a place to look at in review.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The secret itself, to be filled in place.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_content() {
        let text = format!("{:?}", Secret::new([0x41u8; 8]));
        assert_eq!(text, "Secret(redacted)");
    }
}
