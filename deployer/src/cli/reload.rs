//! `deployer reload`: has the daemon read its configuration again, and says what became of each service.

use std::path::{Path, PathBuf};

use super::{
    client::{Client, Failure},
    out::{self, clean},
};
use crate::{
    api::{Exit, Reloaded},
    config,
};

/// The socket of the daemon that a configuration file is of; `given` where none is named.
pub(super) fn socket(file: Option<&Path>, given: PathBuf) -> PathBuf {
    // A file that is wrong is refused by the daemon, which is found by what can be read of it.
    file.map_or(given, |file| config::named(&std::fs::read_to_string(file).unwrap_or_default()).socket)
}

pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let reloaded: Reloaded = client.post("/v1/reload", &serde_json::json!({})).await?;
    if !json {
        return out::say(&text(&reloaded));
    }
    let line = serde_json::to_string(&reloaded)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write the answer as JSON: {error}")))?;
    out::say(&line)
}

fn text(Reloaded { file, applied, deferred, notes }: &Reloaded) -> String {
    let mut text = format!("the daemon has read {} again\n", clean(file));
    match (applied.is_empty(), deferred.is_empty()) {
        (true, true) => text.push_str("no service is configured otherwise than before\n"),
        (false, _) => text.push_str(&format!("applied: {}\n", clean(&applied.join(", ")))),
        (true, false) => {}
    }
    deferred.iter().for_each(|one| text.push_str(&format!("deferred: {}\n", clean(&one.to_string()))));
    notes.iter().for_each(|note| text.push_str(&format!("note: {}\n", clean(note))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Deferred;

    #[test]
    fn what_was_applied_and_what_waits_is_listed() {
        let mut reloaded =
            Reloaded { file: "/f".to_owned(), applied: Vec::new(), deferred: Vec::new(), notes: Vec::new() };
        assert!(text(&reloaded).ends_with("no service is configured otherwise than before\n"));
        reloaded.deferred.push(Deferred { service: "web".to_owned(), why: "roll web-1 runs".to_owned() });
        assert_eq!(text(&reloaded), "the daemon has read /f again\ndeferred: web: roll web-1 runs\n");
        reloaded.applied = vec!["api".to_owned(), "old".to_owned()];
        reloaded.notes.push("[fleet] later".to_owned());
        let said = text(&reloaded);
        assert!(said.contains("applied: api, old\ndeferred: web") && said.ends_with("note: [fleet] later\n"), "{said}");
    }

    #[test]
    fn the_socket_is_found_also_in_a_file_that_is_wrong() {
        assert_eq!(socket(None, "/given".into()), Path::new("/given"));
        let (dir, of) = (tempfile::tempdir().unwrap(), |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            socket(Some(file.path()), "/given".into())
        });
        let default = Path::new("/run/deployer/deployer.sock");
        assert_eq!(socket(Some(&dir.path().join("none")), "/given".into()), default);
        assert_eq!(of("[kernel]\nlease = \"1s\"\n"), default);
        assert_eq!(of("[daemon]\nsocket = \"/x.sock\"\n[service.web]\nnonsense = 1\n"), Path::new("/x.sock"));
        assert_eq!(of("[daemon]\nsocket = \"/x.sock\"\n[service.web\n"), Path::new("/x.sock"));
        assert_eq!(of("[daemon]\nsocket = 3\n"), default);
    }
}
