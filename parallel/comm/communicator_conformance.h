// What every Communicator does, written once as value-parameterised tests. A backend's test
// includes this header, defines the functions that conformance_testing.h asks for, and instantiates
// CommunicatorConformanceTest over group sizes.
#pragma once

#include "parallel/comm/collectives_conformance.h"
#include "parallel/comm/conformance_testing.h"
#include "parallel/comm/failures_conformance.h"
#include "parallel/comm/messages_conformance.h"
