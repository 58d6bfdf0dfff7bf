# Changes something the first time, and fails every time.
class broken {
  file { "{{.Applied}}/${trusted['certname']}.broken":
    ensure  => file,
    content => "changed\n",
  }
  exec { '/bin/false': }
}
