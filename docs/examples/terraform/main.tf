# A node for an instance. Not with the external data source: that is read again by
# every plan, and a provision that is asked again after ten minutes makes a new key.

variable "certname" {
  type = string
}

resource "terraform_data" "node" {
  input = {
    certname  = var.certname
    user_data = "${path.root}/${var.certname}.user-data"
  }
  # The identity of this node, and of no other of the same name: what a retry
  # of a failed apply gives again, and what is terminated in the end.
  triggers_replace = [var.certname]

  provisioner "local-exec" {
    environment = {
      CERTNAME  = self.input.certname
      USER_DATA = self.input.user_data
      ID        = self.id
    }
    command = <<-EOT
      set -eu
      rm -f "$USER_DATA"
      espm node provision "$CERTNAME" --request-id "terraform-$ID" --format cloud-init --out "$USER_DATA" -o json >"$USER_DATA.json"
    EOT
  }

  provisioner "local-exec" {
    when = destroy
    environment = {
      CERTNAME  = self.input.certname
      USER_DATA = self.input.user_data
    }
    command = <<-EOT
      set -eu
      [ -s "$USER_DATA.json" ] || exit 0
      espm node terminate "$CERTNAME" --uid "$(jq -r .node.uid "$USER_DATA.json")" --wait 30s
      rm -f "$USER_DATA" "$USER_DATA.json"
    EOT
  }
}

# The instance: here as the cloud's own resource would be, which takes user_data.
#
#   resource "aws_instance" "web" {
#     depends_on       = [terraform_data.node]
#     user_data_base64 = filebase64(terraform_data.node.output.user_data)
#     lifecycle { ignore_changes = [user_data_base64] }
#   }
