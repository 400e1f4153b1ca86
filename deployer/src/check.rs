//! Stub.
/// Stub.
pub fn main(_: Option<&std::path::Path>, _: bool) -> crate::api::Exit {
    crate::api::Exit::Failed
}
