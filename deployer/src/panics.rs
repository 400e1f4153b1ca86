//! What a task that has panicked leaves.

use tokio::task::JoinError;

/// What a task has panicked with; `None`: it has not.
pub(crate) fn panicked(error: JoinError) -> Option<String> {
    let payload = error.try_into_panic().ok()?;
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    Some(text.unwrap_or_else(|| "no message".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_words_of_a_panic_are_kept() {
        let word = "text".to_owned();
        assert_eq!(panicked(tokio::spawn(async { panic!("on purpose") }).await.unwrap_err()).unwrap(), "on purpose");
        assert_eq!(panicked(tokio::spawn(async move { panic!("a {word}") }).await.unwrap_err()).unwrap(), "a text");
        let endless = tokio::spawn(std::future::pending::<()>());
        endless.abort();
        assert_eq!(panicked(endless.await.unwrap_err()), None);
    }
}
