
sub vcl_recv {
{{choice}}
}
