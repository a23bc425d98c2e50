#include "shim.h"

#include <stddef.h>
#include <unistd.h>

#include <php.h>
#include <SAPI.h>
#include <zend_generators.h>

/* What src/trace/reader.rs takes for granted of every PHP version. */
_Static_assert(IS_UNDEF == 0 && IS_NULL == 1 && IS_FALSE == 2 && IS_TRUE == 3 && IS_LONG == 4 && IS_DOUBLE == 5
                   && IS_STRING == 6 && IS_ARRAY == 7 && IS_OBJECT == 8 && IS_RESOURCE == 9 && IS_REFERENCE == 10,
               "the numbers of PHP's types have changed");
_Static_assert(ZEND_INTERNAL_FUNCTION == 1 && ZEND_USER_FUNCTION == 2 && ZEND_EVAL_CODE == 4,
               "the kinds of functions have changed");
_Static_assert(ZEND_CALL_CODE == 1 << 16 && ZEND_CALL_TOP == 1 << 17 && ZEND_CALL_GENERATOR == 1 << 24
                   && GC_TYPE_MASK == 0xf && Z_TYPE_MASK == 0xff,
               "the flags of calls have changed");

void shim_trace(struct shim_trace_layout *out)
{
#define ADDRESS(variable) ((uint64_t) (uintptr_t) &(variable))
    *out = (struct shim_trace_layout) {
        .current_execute_data = ADDRESS(EG(current_execute_data)),
        .exception_op = ADDRESS(EG(exception_op)),
        .exception_op_size = sizeof EG(exception_op),
        .opline_before_exception = ADDRESS(EG(opline_before_exception)),
        .server_context = ADDRESS(SG(server_context)),
        .request_script = ADDRESS(SG(request_info).path_translated),
        .request_method = ADDRESS(SG(request_info).request_method),
        .request_uri = ADDRESS(SG(request_info).request_uri),
        .request_query = ADDRESS(SG(request_info).query_string),
        .generator_class = (uint64_t) (uintptr_t) zend_ce_generator,
        .execute_data_opline = offsetof(zend_execute_data, opline),
        .execute_data_func = offsetof(zend_execute_data, func),
        .execute_data_this = offsetof(zend_execute_data, This),
        .execute_data_type_info = offsetof(zend_execute_data, This.u1.type_info),
        .execute_data_num_args = offsetof(zend_execute_data, This.u2.num_args),
        .execute_data_prev = offsetof(zend_execute_data, prev_execute_data),
        .execute_data_arguments = ZEND_CALL_FRAME_SLOT * sizeof(zval),
        .zval_size = sizeof(zval),
        .zval_type = offsetof(zval, u1.v.type),
        .function_type = offsetof(zend_function, type),
        .function_name = offsetof(zend_function, common.function_name),
        .function_scope = offsetof(zend_function, common.scope),
        .op_array_num_args = offsetof(zend_op_array, num_args),
        .op_array_filename = offsetof(zend_op_array, filename),
        .op_lineno = offsetof(zend_op, lineno),
        .string_type_info = offsetof(zend_string, gc.u.type_info),
        .string_len = offsetof(zend_string, len),
        .string_val = offsetof(zend_string, val),
        .class_name = offsetof(zend_class_entry, name),
        .object_class = offsetof(zend_object, ce),
        .generator_execute_data = offsetof(zend_generator, execute_data),
        .generator_parent = offsetof(zend_generator, node.parent),
        .zygote = (uint64_t) getpid(),
    };
#undef ADDRESS
}
