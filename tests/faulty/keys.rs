//! The keys of a load, each with its live share and those that it replaced.

use crate::deployment::material;
use crate::interleaving::plan::Dice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use trefoil::client::{NewKey, SigningMaterial};
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Curve, SignInput, SignatureResult};
use zeroize::Zeroizing;

/// Keys that are looked at for one that fits.
const TRIES: usize = 16;

/// Passwords are machine-made, so that stretching them costs nothing.
pub fn password(number: u8) -> Password {
    Password::new(Zeroizing::new(vec![number; 32])).unwrap()
}

/// A share with its password.
#[derive(Clone)]
pub struct Share {
    pub new: NewKey,
    pub password: u8,
}

impl Share {
    pub fn material(&self) -> SigningMaterial {
        material(&self.new)
    }

    pub fn secrets(&self) -> Secrets {
        Secrets {
            password: Some(password(self.password)),
            encrypted_share: Some(self.new.encrypted_share.clone()),
            secret_store: Some(self.new.secret_store.clone()),
            ..Secrets::default()
        }
    }

    /// Whether a result's signature is this key's over this input: by the client library, and on secp256k1 by libsecp256k1 too. Returns the
    /// signature's random point beside.
    pub fn verify(&self, input: &SignInput, signature: &SignatureResult) -> (Vec<u8>, Result<(), String>) {
        let key = &self.new.key;
        let verified = trefoil::client::verify::signature(&key.public_key, &key.chain_code, input, signature)
            .map_err(|error| error.to_string())
            .and_then(|()| self.verify_independently(input, signature));
        (signature.signature.0[..32].to_vec(), verified)
    }

    fn verify_independently(&self, input: &SignInput, signature: &SignatureResult) -> Result<(), String> {
        let key = &self.new.key;
        let SignInput::Secp256k1 { digest, .. } = input else { return Ok(()) };
        let public = trefoil::client::verify::signing_key(&key.public_key, &key.chain_code, input);
        let public = public.map_err(|error| error.to_string())?;
        let check = || {
            let public = secp256k1::PublicKey::from_slice(&public)?;
            let signature = secp256k1::ecdsa::Signature::from_compact(&signature.signature.0)?;
            secp256k1::SECP256K1.verify_ecdsa(secp256k1::Message::from_digest(*digest), &signature, &public)
        };
        check().map_err(|error| format!("libsecp256k1: {error}"))
    }
}

/// A key through its generations.
pub struct Family {
    pub curve: Curve,
    /// Whoever signs reads; whoever replaces the share writes, so that no job has a share that is gone by the time it runs.
    pub live: Arc<RwLock<Share>>,
    pub replaced: Mutex<Vec<Share>>,
}

/// All keys, in the order in which their results came. The first is the hot one.
#[derive(Default)]
pub struct Keys(Mutex<Vec<Arc<Family>>>);

impl Keys {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Family>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, share: Share) {
        let (curve, live, replaced) = (share.new.key.curve, Arc::new(RwLock::new(share)), Mutex::default());
        self.lock().push(Arc::new(Family { curve, live, replaced }));
    }

    pub fn all(&self) -> Vec<Arc<Family>> {
        self.lock().clone()
    }

    /// The hot one: the first on secp256k1.
    pub fn hot(&self) -> Arc<Family> {
        Arc::clone(self.lock().iter().find(|key| key.curve == Curve::Secp256k1).expect("there is one"))
    }

    /// A key to sign with, on this curve, of which no share is being replaced if there is one: what cannot be replaced for a while, because
    /// of a fault, keeps no other key's jobs from being published.
    pub async fn to_sign(&self, dice: &mut Dice, curve: Curve) -> OwnedRwLockReadGuard<Share> {
        for _ in 0..TRIES {
            if let Ok(share) = Arc::clone(&self.any(dice, curve).live).try_read_owned() {
                return share;
            }
        }
        Arc::clone(&self.any(dice, curve).live).read_owned().await
    }

    /// A key that no job is under way for.
    pub fn to_replace(&self, dice: &mut Dice, curve: Curve) -> Option<(Arc<Family>, OwnedRwLockWriteGuard<Share>)> {
        (0..TRIES).find_map(|_| {
            let family = self.any(dice, curve);
            let share = Arc::clone(&family.live).try_write_owned().ok()?;
            Some((family, share))
        })
    }

    fn any(&self, dice: &mut Dice, curve: Curve) -> Arc<Family> {
        let keys = self.lock();
        let keys: Vec<_> = keys.iter().filter(|key| key.curve == curve).collect();
        Arc::clone(keys[dice.below(keys.len() as u64) as usize])
    }
}
