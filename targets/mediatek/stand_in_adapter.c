/* A stand-in for MediaTek's libneuron_adapter.so: it takes every model and compiles nothing.
 *
 * MediaTek's LiteRT plugin decides by itself which ops it can express to NeuronAdapter, but only after it has loaded
 * the library. Beside this one the plugin partitions and translates a model as it would for a phone, so what it
 * refuses can be seen without the NeuroPilot SDK. What it "compiles" here is 16 zero bytes, which no phone loads.
 *
 * The functions' names and arguments are those of MediaTek's public NeuronAdapter.h. Each returns NEURON_NO_ERROR (0).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { OK = 0, FAILED = 1, COMPILED_BYTES = 16, FIRST_EXTENSION_TYPE = 0x10000 };

/* Models, compilations and executions are opaque to the plugin: the address of this byte stands for all of them. */
static char handle;

typedef struct {
  uint8_t major, minor, patch;
} Version;

int Neuron_getVersion(Version *version) {
  version->major = 8, version->minor = 0, version->patch = 0;
  return OK;
}

static int give_handle(void **out) {
  *out = &handle;
  return OK;
}

int NeuronModel_create(void **model) { return give_handle(model); }
int NeuronCompilation_create(void *model, void **out) { return give_handle(out); }
int NeuronCompilation_createWithOptions(void *model, void **out, const char *options) { return give_handle(out); }
int NeuronCompilation_createV2(void *model, int type, const char *options, void **out) { return give_handle(out); }
int NeuronExecution_create(void *compilation, void **out) { return give_handle(out); }

static int extension_type(uint16_t code, int32_t *type) {
  *type = FIRST_EXTENSION_TYPE | code;
  return OK;
}

int NeuronModel_getExtensionOperandType(void *model, const char *name, uint16_t code, int32_t *type) {
  return extension_type(code, type);
}
int NeuronModel_getExtensionOperationType(void *model, const char *name, uint16_t code, int32_t *type) {
  return extension_type(code, type);
}

int NeuronCompilation_getSupportedOperations(void *compilation, uint32_t count, bool *supported) {
  for (uint32_t i = 0; i < count; ++i) supported[i] = true;
  return OK;
}
int NeuronCompilation_getCompiledNetworkSize(void *compilation, size_t *size) {
  *size = COMPILED_BYTES;
  return OK;
}
int NeuronCompilation_storeCompiledNetwork(void *compilation, void *buffer, size_t size) {
  memset(buffer, 0, size);
  return OK;
}
int NeuronModel_restoreFromCompiledNetwork(void **model, void **compilation, const void *buffer, size_t size) {
  return FAILED; /* there is nothing to restore */
}

#define ACCEPTS(name) \
  int name(void) { return OK; }
#define IGNORES(name) \
  void name(void) {}

IGNORES(NeuronModel_free)
IGNORES(NeuronCompilation_free)
IGNORES(NeuronExecution_free)
IGNORES(NeuronMemory_free)
ACCEPTS(NeuronModel_addOperand)
ACCEPTS(NeuronModel_addOperation)
ACCEPTS(NeuronModel_finish)
ACCEPTS(NeuronModel_identifyInputsAndOutputs)
ACCEPTS(NeuronModel_relaxComputationFloat32toFloat16)
ACCEPTS(NeuronModel_setName)
ACCEPTS(NeuronModel_setOperandPerChannelQuantParams)
ACCEPTS(NeuronModel_setOperandSymmPerChannelQuantParams)
ACCEPTS(NeuronModel_setOperandValue)
ACCEPTS(NeuronModel_suppressInputConversion)
ACCEPTS(NeuronModel_suppressOutputConversion)
ACCEPTS(NeuronCompilation_finish)
ACCEPTS(NeuronCompilation_getInputPaddedDimensions)
ACCEPTS(NeuronCompilation_getInputPaddedSize)
ACCEPTS(NeuronCompilation_getOutputPaddedDimensions)
ACCEPTS(NeuronCompilation_getOutputPaddedSize)
ACCEPTS(NeuronCompilation_setL1MemorySizeKb)
ACCEPTS(NeuronCompilation_setOptimizationHint)
ACCEPTS(NeuronCompilation_setOptimizationString)
ACCEPTS(NeuronCompilation_setPreference)
ACCEPTS(NeuronCompilation_setPriority)
ACCEPTS(NeuronExecution_compute)
ACCEPTS(NeuronExecution_setBoostHint)
ACCEPTS(NeuronExecution_setConfig)
ACCEPTS(NeuronExecution_setInputFromMemory)
ACCEPTS(NeuronExecution_setOutputFromMemory)
ACCEPTS(NeuronMemory_createFromAHardwareBuffer)
ACCEPTS(NeuronMemory_createFromFd)
ACCEPTS(Neuron_getL1MemorySizeKb)
