//! The whole service as processes: every job ends in the right result, whatever goes wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, material, password};
use trefoil::wire::{Curve, KdfParams, Method, SignInput};

#[tokio::test(flavor = "multi_thread")]
async fn generates_and_signs_on_ed25519() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let new = backend.generate(Curve::Ed25519, KdfParams::default(), password()).await.unwrap();
    backend.committed(&new.key, std::time::Duration::from_secs(10)).await.unwrap();
    for message in [&b""[..], b"\0leading zero", b"hello"] {
        let input = SignInput::Ed25519 { message: message.to_vec() };
        for method in [Method::Default, Method::Mta] {
            let signed = backend.sign(&material(&new), method, &input, password()).await.unwrap();
            assert_eq!(signed.method, Method::Default);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generates_and_signs_on_secp256k1() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let new = backend.generate(Curve::Secp256k1, KdfParams::default(), password()).await.unwrap();
    backend.committed(&new.key, std::time::Duration::from_secs(10)).await.unwrap();
    for path in [None, Some("m/0/1".to_owned())] {
        for method in [Method::Default, Method::Mta] {
            let input = SignInput::Secp256k1 { digest: [7; 32], path: path.clone() };
            let signed = backend.sign(&material(&new), method, &input, password()).await.unwrap();
            assert_eq!(signed.method, Method::Mta);
        }
    }
}
