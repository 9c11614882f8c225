//! `jotd-loadgen --scenario=put --endpoints=127.0.0.1:2379 ...`: one line of JSON about one run.

use std::process::ExitCode;

use jotd_load::{Options, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help") {
        // The options are their own documentation; so are their defaults.
        println!("usage: jotd-loadgen [--name=value ...], with these names and defaults:");
        match serde_json::to_string_pretty(&Options::default()) {
            Ok(text) => println!("{text}"),
            Err(why) => eprintln!("jotd-loadgen: {why}"),
        }
        return ExitCode::SUCCESS;
    }
    let outcome = Options::parse(arguments.into_iter()).and_then(|options| {
        let mut progress = |done: u64, part: f64| {
            if options.progress {
                eprintln!("{{\"done\":{done},\"part\":{part:.4}}}");
            }
            true
        };
        run(&options, &mut progress)?.to_json()
    });
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("jotd-loadgen: {why}");
            ExitCode::FAILURE
        }
    }
}
