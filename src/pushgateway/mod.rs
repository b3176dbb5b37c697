//! The Pushgateway: what is pushed, under which key, and what is taken away again.
