/* PHP's allocator, and where it takes memory from in large pieces. */

#include "shim.h"

#include <php.h>
#include <zend_alloc.h>

static const struct shim_memory *memory;

static void *take_memory(zend_mm_storage *storage, size_t size, size_t alignment)
{
    (void) storage, (void) alignment;
    return memory->take(size);
}

static void give_memory_back(zend_mm_storage *storage, void *chunk, size_t size)
{
    (void) storage;
    memory->give_back(chunk, size);
}

static bool truncate_memory(zend_mm_storage *storage, void *chunk, size_t old_size, size_t new_size)
{
    (void) storage;
    return memory->truncate(chunk, old_size, new_size);
}

static bool extend_memory(zend_mm_storage *storage, void *chunk, size_t old_size, size_t new_size)
{
    (void) storage;
    return memory->extend(chunk, old_size, new_size);
}

bool shim_use_memory(const struct shim_memory *from)
{
    static zend_mm_storage storage = {{take_memory, give_memory_back, truncate_memory, extend_memory}, NULL};
    zend_mm_heap *heap = zend_mm_get_heap();
    if (!is_zend_mm() || zend_mm_get_storage(heap)) {
        return false;
    }
    /* PHP keeps the storage of a heap that is made with one in the heap itself, which each request's end sweeps. So the heap that is
     * there gets ours: its second word, and PHP is asked whether it sees it so. */
    void **place = (void **) heap + 1;
    if (*place) {
        return false;
    }
    memory = from;
    *place = &storage;
    if (zend_mm_get_storage(heap) != &storage) {
        *place = NULL;
        return false;
    }
    return true;
}
