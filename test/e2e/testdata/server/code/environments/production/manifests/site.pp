# What every node gets, whoever classified it.
file { "{{.Applied}}/${trusted['certname']}.site":
  ensure  => file,
  content => "compiled from site.pp\n",
}
