//! The backend's side: build, sign and seal jobs, publish them, await their results and believe only what is proven.

pub mod verify;
