package clock_test

import (
	"testing"

	"github.com/espm-project/espm/internal/store/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }
