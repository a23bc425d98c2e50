/* The body of a request, as PHP buffers it: in memory up to 16 KB, a temporary file beyond. Each block of such a file is written
 * and read again by a system call, for what is gone a millisecond later. */

#include <dlfcn.h>

#include <php.h>
#include <php_globals.h>
#include <php_memory_streams.h>
#include <SAPI.h>

/* The most of a body that stays in memory, bytes: nobody notices it beside memory_limit's usual 128 MB. */
#define MOST_IN_MEMORY (2u << 20)

/* With a smaller limit this part of it. */
#define SHARE_OF_LIMIT 64

/* libphp calls this through the dynamic linker, so that ours takes its place; a body is told by the threshold, which nothing else has. */
PHPAPI php_stream *_php_stream_temp_create_ex(int mode, size_t max_memory_usage, const char *tmpdir STREAMS_DC)
{
    static php_stream *(*real)(int mode, size_t max_memory_usage, const char *tmpdir STREAMS_DC);
    if (!real) {
        *(void **) &real = dlsym(RTLD_NEXT, "_php_stream_temp_create_ex");
    }
    if (max_memory_usage == SAPI_POST_BLOCK_SIZE) {
        zend_long limit = PG(memory_limit) > 0 ? PG(memory_limit) / SHARE_OF_LIMIT : MOST_IN_MEMORY;
        max_memory_usage = MAX(SAPI_POST_BLOCK_SIZE, MIN(MOST_IN_MEMORY, limit));
    }
    return real(mode, max_memory_usage, tmpdir STREAMS_REL_CC);
}
