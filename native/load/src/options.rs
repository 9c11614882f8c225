//! What a run is told.

use serde::{Deserialize, Serialize};

/// See `jotd-loadgen --help`. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// host:port of each server; connections are spread over them.
    pub endpoints: Vec<String>,
    /// watch, kube, renew: host:port of each server that is watched, on connections of their own;
    /// none: the same servers, and the same connections.
    pub watch_endpoints: Vec<String>,
    /// put, txn, range, count, list, range-stream, watch, keepalive, mixed, kube, renew
    /// (kube's lease renewals alone), or fill.
    pub scenario: String,
    /// Connections.
    pub conns: usize,
    /// Units of work under way at once. With a rate: at most. 0: 64; with a rate 1024.
    pub concurrency: usize,
    /// Units of work a second, begun on time whatever became of those before; 0: each worker
    /// begins its next when its last is done.
    pub rate: f64,
    /// How long to measure.
    pub duration_s: f64,
    /// How long to run before measuring.
    pub warmup_s: f64,
    /// Different keys.
    pub keys: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// list: objects a page; 0: all in one answer.
    pub limit: u64,
    /// watch, kube, renew: streams that watch; null: 100 for watch, else 15.
    pub watchers: Option<usize>,
    /// kube, renew: nodes.
    pub nodes: usize,
    /// All keys begin with it.
    pub prefix: String,
    /// range, count, list, range-stream, mixed, kube, renew: write the keys first.
    pub fill: bool,
    /// Threads that make the load.
    pub threads: usize,
    /// The server's process on this machine, whose CPU and memory are to be reported; 0: none.
    pub pid: u32,
    /// Report progress on stderr, one line of JSON a second.
    pub progress: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            watch_endpoints: Vec::new(),
            scenario: "put".to_owned(),
            conns: 8,
            concurrency: 0,
            rate: 0.0,
            duration_s: 5.0,
            warmup_s: 1.0,
            keys: 10_000,
            value_bytes: 1024,
            limit: 0,
            watchers: None,
            nodes: 1000,
            prefix: "/registry/pods/load/".to_owned(),
            fill: true,
            threads: 1,
            pid: 0,
            progress: false,
        }
    }
}

impl Options {
    /// Reads `--name=value` arguments.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let defaults = serde_json::to_value(Options::default()).map_err(|why| why.to_string())?;
        let mut given = serde_json::Map::new();
        for argument in arguments {
            let (name, value) = argument
                .strip_prefix("--")
                .and_then(|rest| rest.split_once('=').or(Some((rest, "true"))))
                .ok_or_else(|| format!("{argument:?} is not of the form --name=value"))?;
            let value = match defaults.get(name) {
                None => return Err(format!("there is no option --{name}")),
                Some(serde_json::Value::Array(_)) => value.split(',').collect(),
                Some(serde_json::Value::String(_)) => value.into(),
                Some(_) => serde_json::from_str(value).map_err(|why| format!("--{name}: {why}"))?,
            };
            given.insert(name.to_owned(), value);
        }
        serde_json::from_value(given.into()).map_err(|why| why.to_string())
    }

    /// Reads a JSON object; what it does not name has its default.
    pub fn from_json(text: &str) -> Result<Options, String> {
        serde_json::from_str(text).map_err(|why| why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn arguments_have_the_types_of_their_options() {
        let options = parse(&[
            "--endpoints=a:1,b:2",
            "--prefix=7",
            "--rate=1.5",
            "--watchers=3",
            "--fill=false",
            "--progress",
        ]);
        let options = options.unwrap();
        assert_eq!(options.endpoints, ["a:1", "b:2"]);
        assert_eq!(options.prefix, "7");
        assert_eq!((options.rate, options.watchers), (1.5, Some(3)));
        assert_eq!((options.fill, options.progress), (false, true));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert!(parse(&["--nonsense=1"]).unwrap_err().contains("nonsense"));
        assert!(parse(&["--keys=many"]).unwrap_err().contains("keys"));
        assert!(parse(&["keys"]).unwrap_err().contains("keys"));
        assert!(Options::from_json("{\"nonsense\": 1}").unwrap_err().contains("nonsense"));
    }
}
