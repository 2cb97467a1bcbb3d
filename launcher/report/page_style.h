// How the page looks.
#pragma once

#include <string>

namespace thinwire {

// The content of its <style> element: light, dark where the reader prefers that, light on paper.
std::string PageStyle();

}  // namespace thinwire
